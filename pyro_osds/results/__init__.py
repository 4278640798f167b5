"""What leaves the package: InferenceData, tables, figures, files."""
