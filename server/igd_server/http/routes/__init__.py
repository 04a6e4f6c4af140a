"""HTTP routes: one router a file, each made by a function from the parts it needs."""
