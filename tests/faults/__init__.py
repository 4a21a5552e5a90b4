"""Bad and odd inputs, one file per kind, each a list of cases: what is done, and what has to come of it."""
