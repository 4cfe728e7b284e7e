"""Reports: one HTML file that opens from disk, without script and without an outside address.

`markup` holds the templates (page, section, card, photo, player, table), which any page about retrieval can use; `svg`
draws; `run` and `comparison` write the reports.
"""
