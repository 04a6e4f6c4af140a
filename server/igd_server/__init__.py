"""The HTTP server: one app, made by `igd_server.app.create_app` from settings and the parts handed in."""
