// what is wider than the page is scrolled with the keys, too
const reach = () => document.querySelectorAll('.math-block, .cell_output pre, div.highlight pre, .bd-article table').forEach(e => {
  if (e.scrollWidth > e.clientWidth + 1) e.tabIndex = 0; else e.removeAttribute('tabindex');
});
addEventListener('load', reach);
addEventListener('resize', reach);
// the playground takes the page's colours
const dress = () => document.querySelectorAll('iframe.playground').forEach(f => f.contentWindow.postMessage({theme: document.documentElement.dataset.theme}, '*'));
new MutationObserver(dress).observe(document.documentElement, {attributeFilter: ['data-theme']});
document.addEventListener('load', dress, true);
