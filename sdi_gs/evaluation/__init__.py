# SPDX-License-Identifier: Apache-2.0
"""How good a finished run is: the paper's protocol on local weights, and truth where known."""
