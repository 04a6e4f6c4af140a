"""Requests, responses and problem documents: their fields and bounds."""
