"""Who may do what: API keys, share links, tickets, and the one gate in front of every endpoint."""
