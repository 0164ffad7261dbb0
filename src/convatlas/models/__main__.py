"""`python -m convatlas.models`: see `convatlas.catalogue`."""

from convatlas.catalogue import command

command()
