# SPDX-License-Identifier: Apache-2.0
"""The studio: a page in the browser that makes shapes, for people who do not type commands."""
