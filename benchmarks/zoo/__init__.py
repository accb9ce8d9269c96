"""Third-party models in small random configurations, one file per kind of source."""
