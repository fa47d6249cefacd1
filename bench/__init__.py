# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""What Tidemill costs, beside hand-written limits and FastStream: `python -m bench`, see README.md."""
