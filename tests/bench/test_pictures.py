"""A report as a picture."""


def test_the_plot_is_a_picture(everything):
    assert everything.picture.startswith(b"\x89PNG")
