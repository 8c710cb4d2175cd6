# The look of every figure: load it after the figure's variables. `format` is "svg" (default) or "png".
if (!exists("format")) format = "svg"
set encoding utf8
if (format eq "svg") {
    set terminal svg size 800,500 dynamic enhanced font "DejaVu Sans,13" background "#ffffff"
} else {
    set terminal pngcairo size 1600,1000 fontscale 2 linewidth 2 pointscale 2 dashlength 0.8 \
        enhanced font "DejaVu Sans,13" background "#ffffff"
}
set output figure.".".format
set colorsequence podo
set border 3 linewidth 1 linecolor rgb "#404040"
set tics nomirror
set grid back linetype 1 linewidth 0.5 linecolor rgb "#d8d8d8"
set key outside right top Left reverse samplen 2.5 spacing 1.2 noenhanced
set title noenhanced
set datafile missing "?"

# Line types 11 to 16 are the series: podo colour, dash, mark and size differ together, so that they
# read without colour, and later ones are smaller, so that curves on top of each other stay visible.
set linetype 11 linecolor rgb "#000000" dashtype solid pointtype 7 pointsize 1.6
set linetype 12 linecolor rgb "#e69f00" dashtype (24, 6) pointtype 5 pointsize 1.4
set linetype 13 linecolor rgb "#56b4e9" dashtype (12, 6) pointtype 9 pointsize 1.5
set linetype 14 linecolor rgb "#009e73" dashtype (18, 5, 3, 5) pointtype 13 pointsize 1.4
set linetype 15 linecolor rgb "#0072b2" dashtype (6, 4) pointtype 6 pointsize 0.9
set linetype 16 linecolor rgb "#d55e00" dashtype (3, 5) pointtype 4 pointsize 0.7
series(k) = 11 + (k - 1) % 6
set linetype 21 linecolor rgb "#c00000" dashtype (14, 7) linewidth 2.5 # a limit
set linetype 22 linecolor rgb "#808080" dashtype (2, 6) linewidth 1.5 # a guide
set linetype 23 linecolor rgb "#202020" pointtype 6 pointsize 2.8 linewidth 1.2 # a ring around a point
set linetype 24 linecolor rgb "#000000" pointtype 11 pointsize 1.3 # a peak
