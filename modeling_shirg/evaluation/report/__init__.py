"""Pages and slides about an evaluation or a study: reported.py opens the run, figures.py and examples.py draw, pages.py
renders templates/."""
