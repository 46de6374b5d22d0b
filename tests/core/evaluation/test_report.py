"""Reports as Markdown."""

from context_diffusion.evaluation.report import format_figure, heldout_markdown


def test_tables_hold_every_setting_and_figure():
    figures = {
        "rmse": [0.2512, 0.2, 0.3],
        "psnr": [32.04, 31.0, 33.0],
        "color_deviation": [0.0131, 0.012, 0.014],
    }
    part = {
        "cases": 4,
        "codepoints": 3,
        "settings": {"vae": figures},
        "ratios": {"rmse c/p": [0.8, 0.7, 0.9]},
    }
    text = heldout_markdown({"protocol": {"seeds": 3}, "parts": {"seen": part}})
    assert "| setting | RMSE | color deviation | PSNR dB |" in text
    row = "| VAE alone | 0.251 [0.200, 0.300] | 0.0131 [0.0120, 0.0140] | 32.0 [31.0, 33.0] |"
    assert row in text
    assert "| rmse c/p | 0.800 [0.700, 0.900] |" in text
    assert format_figure([-0.002, -0.01, 0.006]) == "-0.0020 [-0.0100, 0.0060]"
    assert format_figure([2.5, None, None]) == "2.500"
