"""Recipes: those that ship, by their names, and what a recipe may say."""
