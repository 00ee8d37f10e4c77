"""Other software: tables of renamed keys; outputs are equal before and after."""
