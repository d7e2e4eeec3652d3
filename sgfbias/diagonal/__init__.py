r"""Diagonal linear networks: which solution do SGD and its flow select, and does theory
predict it?

The network computes $\langle \beta, x \rangle$ with $\beta = w_+^2 - w_-^2$, and the
flow moves its weights by

$$ d w_\pm = -\nabla_{w_\pm} L \, dt + \sqrt{\gamma}\, \Sigma^{1/2}\, dB . $$

The limit of the flow minimises a potential $\phi_\alpha$ over the solutions of
$X \beta = y$. The noise makes this $\alpha$ smaller than the scale of the
initialisation (Pesme, Pillaud-Vivien, Flammarion 2021). All public names can be
imported from the root of `sgfbias`.
"""
