"""The gradient doctor: every gradient method against exact backprop on a model of yours, and which one to take."""
