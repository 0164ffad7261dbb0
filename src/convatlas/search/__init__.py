"""Architecture search: differentiable, by a controller that is rewarded, by scaling, and at random beside them.

`python -m convatlas.search search=fbnet_dnas` is the entry; `driver.run_search` is the whole of it, top to bottom.
"""
