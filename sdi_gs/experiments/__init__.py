# SPDX-License-Identifier: Apache-2.0
"""The paper's figures as commands: each measures, writes its data and draws its plot."""
