"""What is known of a model type without torch: its layers' shapes, and which ones methods adapt.

Imports config/ and above.
"""
