//! Holds the examples of this folder together; it exports nothing.
