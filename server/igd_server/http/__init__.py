"""HTTP around the routes: who may ask, how often, how much; and the routes."""
