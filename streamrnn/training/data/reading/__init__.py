"""Readers of tables: text, Parquet, NumPy's .npz, and frames of pandas and polars."""
