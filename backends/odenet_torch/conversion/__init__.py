"""`convert`: runs of residual layers inside a model that somebody else wrote become residual stacks."""
