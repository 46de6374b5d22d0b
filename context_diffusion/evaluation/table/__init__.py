"""The paper's table on held-out emoji: tasks x settings x number of context images, with controls."""
