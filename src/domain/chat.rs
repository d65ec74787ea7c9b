//! The format-neutral conversation that requests and answers are converted through.
