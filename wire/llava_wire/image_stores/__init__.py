"""Stores for the tiles of images outside the queue's Redis, so that the queue contains only references."""
