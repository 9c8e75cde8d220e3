"""Text and its tokens: tokenizer, templates, chats, whitespace. Imports data/'s root alone."""
