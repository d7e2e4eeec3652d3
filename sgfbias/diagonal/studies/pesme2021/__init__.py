"""The five figures of Pesme, Pillaud-Vivien, Flammarion 2021 (arXiv 2106.09524). Each
is a study, with bands over many seeds where the paper shows single runs.
"""
