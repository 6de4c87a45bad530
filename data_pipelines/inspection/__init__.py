"""Looking at streams: what one record becomes, and what is wrong with a whole set of them."""
