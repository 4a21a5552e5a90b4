"""The library behind `shirg demo`, never on the Hub: a page that asks, and shows how the answer came about."""
