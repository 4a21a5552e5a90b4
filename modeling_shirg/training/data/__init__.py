"""Behind `modeling_shirg/training/mixture.py`: sources, their rows, which of them can be used, and in which order.

specs.py        what --data and a mixture file say
adapters.py     the registry of sources: from a row of a schema to turns and images
tables.py       an open source; image_files.py: a folder or a zip read in place; scenes.py: rendered rows
reading.py      turns, decoded images, or why a row is bad; bad_rows.py: how many of these are too many
checking.py     every row read once, before training
mixing.py       how much of each source an epoch has, in which order
rows.py         the data sets that a Trainer reads
"""
