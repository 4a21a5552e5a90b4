"""Pages and slides about an evaluation or a study.

reported.py      a folder of `shirg evaluate` or `shirg study`, opened
text_tables.py   results as tables
figures.py       results as pictures
examples.py      single answers, with overlays
pages.py         REPORT.md, REPORT.html and DECK.html, through templates/
deck.py          the slides
"""
