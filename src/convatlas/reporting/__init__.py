"""Tables, plots, claims and the HTML page, from the files that runs leave behind."""
