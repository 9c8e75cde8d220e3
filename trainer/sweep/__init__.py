"""Many runs and the report that compares them.

Imports every room of trainer/ but run/: it starts runs as processes and reads their folders.
"""
