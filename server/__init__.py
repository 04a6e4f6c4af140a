"""The HTTP server: one app, made by `server.app.create_app` from settings and the parts handed in."""
