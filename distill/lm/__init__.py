"""Language models as functions of token prefixes."""
