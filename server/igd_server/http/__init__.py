"""HTTP around the routes: access, rates, limits, protocol; and the routes."""
