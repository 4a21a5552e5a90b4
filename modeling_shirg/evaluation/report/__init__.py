"""Page and slides about an evaluation or a study: pages.py renders templates/ about a run that reported.py opens."""
