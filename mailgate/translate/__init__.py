"""POP3 clients on servers that speak IMAP alone: a maildrop made of mailboxes, and its session."""
