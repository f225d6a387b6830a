"""Networks that repeat stages: recurrent ones, and algorithms of which each iteration is some layers."""
