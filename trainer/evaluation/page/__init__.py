"""The reports of a folder as one page of HTML that makes no request."""
