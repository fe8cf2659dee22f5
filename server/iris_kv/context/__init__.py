"""Conversation summaries: what keeps a long conversation within a model's context, for programs."""
