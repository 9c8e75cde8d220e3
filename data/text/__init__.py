"""Text, labels and tokens: tokenizer, templates, chats, whitespace. Imports data/'s root alone."""
