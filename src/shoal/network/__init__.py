"""Who talks to whom, and what happens on the way."""

import warnings

# The products used here (CSR by dense) have been stable for years; the notice says nothing to a user.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
