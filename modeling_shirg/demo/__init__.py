"""The library behind `shirg demo`, never on the Hub: a page that asks, and shows how the answer came about.

What loads a system and what answers a question come from the caller, so that the page and `shirg ask` are one.
"""
