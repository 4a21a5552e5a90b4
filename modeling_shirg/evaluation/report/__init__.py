"""Pages and slides about an evaluation or a study, every figure from its files.

source.py     a folder of `shirg evaluate` or of `shirg study`, as one thing to report on
blocks.py     headings, tables and pictures, as Markdown and as HTML
tables.py     results as tables
figures.py    results as pictures
picks.py      which answers are shown as examples
pages.py      REPORT.md and REPORT.html
deck.py       DECK.html, nine slides
"""
