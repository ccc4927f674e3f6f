"""From a backbone to an answer: classification, frozen features, and the comparison of initialisations."""
