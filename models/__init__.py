"""The networks topfive knows, and the artifact that carries an exported one. Importing this package loads no torch."""
