"""Runs and adapters on a hub of models: plain files, a card, and nothing that is executed."""
