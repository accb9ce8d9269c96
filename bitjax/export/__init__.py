"""Takes a trained model away: deployed, as files, and as programs that other tools run."""
